from plaudit.cli.display import console, show_table


def test_a_title_is_shown_as_it_is_written():
    with console.capture() as shown:
        show_table("runs/[v2]/model[/b]", [("name", "[green]value[/green]")])
    assert "runs/[v2]/model[/b]" in shown.get()
    assert "value" in shown.get()
    assert "[green]" not in shown.get()
