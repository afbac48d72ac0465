"""Storage and outgoing calls: the job store, audio of jobs, webhooks, files named by URL."""
