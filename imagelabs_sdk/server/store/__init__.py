"""What the server keeps: jobs in a database, finished images beside it."""
