"""A compiler pass: functions of one client, rewritten to run well when mapped. It knows nothing of federation."""
