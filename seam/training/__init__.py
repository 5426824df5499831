"""Training a network and measuring it: one loop with checkpoints, accuracy, the class margin."""
