"""Training predicted before it is paid for, after Proteus; see README.md."""
