"""What `lint-imports` doesn't check: circles of files in which a package's own __init__.py takes part."""

import graphlib

import grimp


def test_no_files_import_each_other_in_a_circle():
    graph = grimp.build_graph("chatgym", "chatgym_agents", cache_dir=None)
    files = {file: graph.find_modules_directly_imported_by(file) for file in graph.modules}
    graphlib.TopologicalSorter(files).prepare()  # raises CycleError, which names the files
