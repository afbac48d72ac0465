"""What all deployments share: threads, model access, calls, options, scaling, drain, metrics."""
