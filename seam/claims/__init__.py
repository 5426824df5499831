"""What the results say about the method's claims: pairs that are compared, statistics, verdicts."""
