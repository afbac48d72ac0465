"""What keeps and fetches things: the job store, audio of jobs, webhooks, files named by URL."""
