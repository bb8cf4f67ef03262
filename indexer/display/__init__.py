"""What people look at: pages and tables for the terminal, data for programs, pictures."""
