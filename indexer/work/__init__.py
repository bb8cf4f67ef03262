"""What a build keeps beside its output while it runs, so that nothing is lost when it stops."""
