"""What can be known to be wrong with the verifiers before they are needed, tried out on this host."""

from megatron_urpo.config import ConfigError
from megatron_urpo.config.reward import CodeConfig, VerifierConfig
from megatron_urpo.reward.verifiable.answers import AnswerPattern, BadPattern
from megatron_urpo.reward.verifiable.code.pool import probe_isolation
from megatron_urpo.reward.verifiable.code.sandbox import SandboxUnavailable


def check_verifier(verifier: VerifierConfig, has_code: bool) -> str | None:
    """The isolation that programs get here, None where no prompt has tests. Raises ConfigError."""
    check_pattern(verifier)
    return check_isolation(verifier.code) if has_code else None


def check_pattern(verifier: VerifierConfig) -> None:
    try:
        AnswerPattern(verifier.answer_pattern)
    except BadPattern as error:
        raise ConfigError(f"verifier.answer_pattern: {error}; correct it") from None


def check_isolation(code: CodeConfig) -> str:
    """Tries a sandbox. Raises ConfigError where the host gives less than the config asks for."""
    try:
        return probe_isolation(code.isolation)
    except SandboxUnavailable as error:
        raise ConfigError(
            f"verifier.code.isolation: {code.isolation} is not to be had on this host ({error}); allow user namespaces,"
            " or set it to `processes` where programs may read what this user may read (docs/verifiers.md)"
        ) from None
