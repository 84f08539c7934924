import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.storage import is_unreachable
from vit_ratio_opt.utils.failures import is_storage_error, reason


def test_what_optuna_stumbles_over_is_the_storages_failure():
    cause = sqlalchemy.exc.OperationalError("SELECT", {}, OSError("disk I/O error"))

    def stumble():
        try:
            raise StorageInternalError("An exception is raised during the commit.") from cause
        except StorageInternalError:
            raise UnboundLocalError("updated_state")  # noqa: B904  as Optuna does

    def explain():
        try:
            raise cause
        except sqlalchemy.exc.OperationalError:
            raise InputError("put this right") from None

    with pytest.raises(UnboundLocalError) as stumbled:
        stumble()
    assert is_storage_error(stumbled.value)
    assert not is_unreachable(stumbled.value)
    assert reason(stumbled.value) == "disk I/O error"
    with pytest.raises(InputError) as explained:
        explain()
    assert not is_storage_error(explained.value)
    assert not is_storage_error(ValueError("of the objective"))


def test_a_reason_is_one_line_without_a_password():
    assert reason(ValueError("two\nlines")) == "two"
    assert reason(ValueError()) == "ValueError"
    assert "hush" not in reason(ValueError("of postgresql://me:hush@host/db"))
