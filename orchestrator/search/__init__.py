"""Combinations that are proposed: the ledger of a search, who proposes, and who gives trials up early."""
