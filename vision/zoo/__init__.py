"""Model zoo: an index of weights, and downloads that are verified before use."""
