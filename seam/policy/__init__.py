"""Policies, layer name -> (weight bits, activation bits): its cost, the best within budgets, its file."""
