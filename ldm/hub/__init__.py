"""A run as one folder with a card, and onto the Hub."""
