"""Decisions as pure functions of plain numbers; each returns its reasons."""
