"""The parts of the bench, one file each. Every one has `run(bench)`, which measures, prints and returns verdicts."""
