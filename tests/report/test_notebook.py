from vit_ratio_opt.report.notebook import show


def test_show_displays_the_table_and_every_figure(make_study, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    show(make_study(), make_study(name="one", fixed=True))
    text, *figures = displayed
    assert "| searched | searched |" in text.data
    titles = [figure.layout.title.text for figure in figures]
    assert titles[1:] == ["Path of the search", "Blocks of the answer's model"]
