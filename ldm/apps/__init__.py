"""What is built on top, and nobody imports: demo, browser page, fonts, figures."""
