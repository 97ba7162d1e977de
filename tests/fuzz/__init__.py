"""Fuzzing: whatever bytes come in, what must hold of the codec and of the gateway holds.

Every target is a plain function of bytes that raises `AssertionError`, or anything else, when something does not hold
(`targets`). Three things feed them:

- Hypothesis, on every test run, bounded and always with the same examples (`test_*.py`);
- the corpus, `corpus/<target>/`: small files that together reach what has been reached before, and every input that
  ever found a bug (`test_corpus.py`);
- atheris, by command and for as long as one likes, guided by coverage: ``python -m tests.fuzz --help``.
"""
