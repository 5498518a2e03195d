"""Combinations that are proposed: the journal of a search, who proposes, and who gives trials up early."""
