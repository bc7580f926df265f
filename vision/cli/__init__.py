"""The console script ``vision``: one module a command, each a parser and a call of the library."""
