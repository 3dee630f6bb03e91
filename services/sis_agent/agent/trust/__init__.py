"""Who this agent is, and how it proves that to its hubs: enrolment, certificates, sealing keys."""
