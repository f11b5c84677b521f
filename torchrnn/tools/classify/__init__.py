"""Classifying sequences: texts, tokens or numbers to one label each, or to one label a step."""
