"""What several suites share: real parts that can be broken, and deployments made of them."""
