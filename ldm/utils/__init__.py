"""Files, the Hub, errors and images: what every package needs and none owns. Imports nothing of ldm but itself."""
