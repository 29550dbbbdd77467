"""What `import perfmodel` offers, and the example in its docstring."""

import doctest

import perfmodel


def test_the_example_of_the_package_runs():
    result = doctest.testmod(perfmodel)
    assert (result.attempted, result.failed) == (7, 0)


def test_public_names_are_there_and_sorted():
    assert perfmodel.__all__ == sorted(perfmodel.__all__)
    assert all(hasattr(perfmodel, name) for name in perfmodel.__all__)
