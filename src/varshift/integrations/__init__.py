"""Bridges to other libraries; each imports its host only when used."""
