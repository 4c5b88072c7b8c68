"""Ready-made problems with their run functions: real ones to search, small ones to learn and to test with."""
