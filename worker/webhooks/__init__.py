"""Events over HTTP: what is sent to an endpoint, when it is tried again, and one try. Knows no rows and no threads."""
