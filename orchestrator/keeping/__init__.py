"""What is kept in the artefact store: who needs it, what it takes, whether it is sound."""
