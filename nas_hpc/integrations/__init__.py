"""Other systems that a search can run under, found by entry points and imported by nobody."""
