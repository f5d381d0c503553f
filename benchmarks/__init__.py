"""What alignd is measured against, and the world that its method is proved on."""
