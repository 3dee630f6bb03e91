"""What the agent asks of the kernel: processes and their trees, control groups, limits, mounts, removal."""
