"""Margins, active-class selection and class rows, in torch."""
