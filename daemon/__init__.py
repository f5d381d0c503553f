"""The wiring of alignd: command line, configuration, inbox, service, worker and round."""
