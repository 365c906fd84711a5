"""Upload to the Hugging Face hub, or to what HF_ENDPOINT names: the one place from which anything leaves this machine.

The token is the user's own (HF_TOKEN, or what `hf auth login` keeps) and is passed to the hub's client alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grape.errors import GrapeError
from grape.net import scrub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"
REFUSED = {401: ("the token is not valid", LOGIN), 403: ("the token may not do this", "use a token that may write there")}


@contextmanager
def _asked(repo: str) -> Iterator[None]:
    """What the hub's client raises, as one message without a token in it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except GrapeError:
        raise
    except HFValidationError as error:
        raise GrapeError(f"this is no name of a repository: {error}", where=repo, mend="write it like owner/name") from None
    except LocalTokenNotFoundError:
        raise GrapeError("there is no token for the hub", where=repo, mend=LOGIN) from None
    except OfflineModeIsEnabled:
        mend = "unset HF_HUB_OFFLINE; nothing is uploaded without a way to the hub"
        raise GrapeError("the hub's client is told to stay offline", where="HF_HUB_OFFLINE", mend=mend) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = scrub(str(error.server_message or str(error).splitlines()[0]))
        what, mend = REFUSED.get(status, (f"the hub answered {status}", "see what it says, and try again"))
        raise GrapeError(f"{what} ({said})", where=repo, mend=mend) from None
    except Exception as error:  # boundary: the client's transports and its uploader each have exceptions of their own
        what = scrub((str(error).strip().splitlines() or [type(error).__name__])[0])
        mend = "check the way to the hub (HF_ENDPOINT, a proxy) and run the same command again"
        raise GrapeError(f"the hub cannot be reached: {type(error).__name__}: {what}", where=repo, mend=mend) from None


def client(repo: str) -> HfApi:
    """The hub's client, after it has been asked who we are: before an export that takes minutes.

    Raises:
        GrapeError: no such name, no token, or one that the hub does not take; no way to it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    with _asked(repo):
        validate_repo_id(repo)
        if "/" not in repo:
            raise GrapeError("this is no name of a repository", where=repo, mend="write it like owner/name")
        if get_token() is None:
            raise GrapeError("there is no token for the hub", where=repo, mend=LOGIN)
        api = HfApi()
        api.whoami()
        return api


def upload(api: HfApi, folder: Path, repo: str, private: bool, message: str) -> str:
    """Make the repository unless it is there, and commit the folder to it; the address of the commit.

    Raises:
        GrapeError: as `client`; the repository is public and was to be private.
    """
    from huggingface_hub.errors import HfHubHTTPError

    with _asked(repo):
        try:
            api.create_repo(repo, private=private, repo_type="model")
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 409:
                raise
            if private and not api.repo_info(repo, repo_type="model").private:
                mend = "make it private on its page, or leave --private out"
                raise GrapeError("it is there, and public", where=repo, mend=mend) from None
        found: Any = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, repo_type="model")
        return str(found.commit_url)
