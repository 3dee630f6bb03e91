"""The processes between the agent and a payload: they outlive the agent, start what a job says, stop it, and see how
it ended."""
