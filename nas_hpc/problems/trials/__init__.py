"""Searches of trials to begin with: spaces, and trainers in plain Python, TensorFlow and PyTorch."""
