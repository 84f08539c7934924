import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import check_storage_url
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.redact import redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:se:c@ret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_passwords_are_redacted(url, shown):
    assert redact(url) == shown


SECRETS = (
    "postgresql://h/db?user=u&password=geheim",
    "postgresql://h/db?user=u&password=ge@heim",
    "postgresql://u:ge?heim@h/db",
    "postgresql://u:ge/heim@h/db",
    "postgresql://u:ge:heim@h/db",
    "postgresql://u:my geheim@h/db",
    "postgresql://u:x@h/db?password=a@geheim",
    "postgresql://:geheim@h/db",
    "postgresql://u:geheim",
    "postgresql+psycopg://h/db?sslmode=require&sslpassword=geheim&sslkey=/geheim",
    "postgresql:///db?host=/run/pg&service=geheim&passfile=/geheim&unknown=geheim",
    "mysql://h/db?ssl_key=geheim&read_default_file=geheim",
    "grpc://u:geheim@h:13000",
    "ray://geheim@h:10001",
    "s3://geheim:geheim@bucket",
    "https://geheim@h/x",
    "sqlite:////no/such/x.db?key=geheim",
    "host=h user=u password=geheim",
    "host=h password='ge heim geheim' dbname=x",
    "{'password': 'geheim', 'host': 'h'}",
    'of {"sslpassword": "geheim"} and postgresql://u:geheim@h/db\nand grpc://geheim@h',
)


@pytest.mark.parametrize("text", SECRETS)
def test_nothing_secret_is_left_of_a_text(text):
    assert "heim" not in redact(text)
    assert redact(redact(text)) == redact(text)


def test_no_place_shows_a_secret(make_study, tmp_path, monkeypatch):
    monkeypatch.setattr("vit_ratio_opt.runs.storage.PROXY_SECONDS", 0.1)
    from vit_ratio_opt.report.commands import resume_command
    from vit_ratio_opt.report.html import html_page
    from vit_ratio_opt.report.notes import study_note

    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    for text in SECRETS:
        study._storage._backend.url = text
        shown = [study_note(study), resume_command(study, text)]
        with pytest.raises(InputError) as error:
            open_storage(text)
        shown += [str(error.value), repr(error.value), reason(ValueError(f"of {text}"))]
        assert not any("heim" in place for place in shown), text
    assert "heim" not in html_page([study], "\n".join(SECRETS))


def test_host_and_port_of_a_query_are_shown():
    url = "postgresql://u:x@/db?host=a,b&port=1,2&password=geheim"
    assert redact(url) == "postgresql://u:***@/db?host=a,b&port=1,2&***"
    assert redact("postgresql://[::1]:5432/db") == "postgresql://[::1]:5432/db"
    assert redact("sqlite:////home/a@b/x.db") == "sqlite:////home/a@b/x.db"


def test_a_sentence_goes_on_after_a_url_without_secrets():
    for url in ("grpc://127.0.0.1:1", "postgresql+psycopg://u:***@/db?***", "sqlite:///a b.db"):
        for sentence in (f"{url} cannot be used: no password", f"At {url}: start it, or '{url}'."):
            assert redact(sentence) == sentence
    hidden = redact("At grpc://h:1: not postgresql://u:my geheim@h/db")
    assert hidden == "At grpc://h:1: not postgresql://u:***@h/db"


def test_what_a_driver_repeats_of_a_url_is_not_shown():
    check_storage_url("postgresql://u:s%40geheim@h/db?sslmode=ungeheuer&host=known")
    error = ValueError("bad sslmode 'ungeheuer' for s@geheim or s%40geheim at known")
    assert reason(error) == "bad sslmode '***' for *** or *** at known"
