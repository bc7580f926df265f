"""Pipeline and sharded-data training after ZeroPP; see README.md."""
