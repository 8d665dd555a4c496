"""Strict reading of raw text: every bad cell is named by file, row and column."""
