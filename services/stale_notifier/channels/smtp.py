"""Mail by SMTP (RFC 5321), with the standard library in a thread whose end is certain.

A repeated delivery has the same ``Message-ID``, and all notices of a group refer to one, so that mail programs show one
thread and one copy.
"""

import asyncio
import email.policy
import smtplib
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from hashlib import sha256

from services.stale_notifier.channels.guard import AddressRefused, Guard
from services.stale_notifier.channels.posting import Clock, now_ms, read_secret, tls_context
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, Notice, Receipt, legible, text, title
from shared.owners import SmtpSettings

TOTAL_TIMEOUTS = 3
"""A whole session takes at most so many times ``timeout_s``; then its connection is shut down under it."""


class Smtp:
    repost_s: float | None = None

    def __init__(self, settings: SmtpSettings, clock: Clock = now_ms) -> None:
        """Raises ``ConfigError``."""
        self.name = settings.name
        self._settings = settings
        self._guard = Guard(settings.allow_addresses)
        self._tls = tls_context(settings)
        self._clock = clock
        self._turn = asyncio.Semaphore(2)
        if settings.password is not None:
            settings.password.read()

    async def send(self, notice: Notice) -> Receipt:
        password = None if self._settings.password is None else read_secret(self.name, self._settings.password)
        body = mail(notice, self._settings).as_bytes(policy=email.policy.SMTP)
        async with self._turn:
            session = _Session(self._settings, self._guard, self._tls)
            ends = asyncio.get_running_loop().call_later(self._settings.timeout_s * TOTAL_TIMEOUTS, session.shut_down)
            try:
                status = await asyncio.to_thread(session.deliver, body, password)
            except (smtplib.SMTPException, OSError) as error:
                raise _judged(self.name, error) from None
            finally:
                ends.cancel()
                session.shut_down()  # a thread that is still at it ends now
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=message_id(notice, self._settings),
            status=status,
            at_ms=self._clock(),
        )


class _Session:
    """One connection, for one mail. Made and shut down by the event loop, used by a thread."""

    def __init__(self, settings: SmtpSettings, guard: Guard, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._guard = guard
        self._tls = tls
        self._lever: socket.socket | None = None
        self._is_over = False

    def shut_down(self) -> None:
        """Make whatever the thread waits for fail, through a second descriptor of its connection."""
        self._is_over = True
        lever, self._lever = self._lever, None
        if lever is not None:
            with suppress(OSError):
                lever.shutdown(socket.SHUT_RDWR)
            lever.close()

    def deliver(self, body: bytes, password: str | None) -> str:
        """Blocks. Returns the server's last word. Raises ``SMTPException`` or ``OSError``."""
        settings = self._settings
        with _Client(self._connect(), settings) as client:
            if settings.tls == "starttls":
                client.starttls(context=self._tls)
            if settings.user is not None and password is not None:
                client.login(settings.user, password)
            refused = client.sendmail(settings.sender, settings.to, body)
        return f"250, {len(settings.to) - len(refused)} of {len(settings.to)} recipients"

    def _connect(self) -> socket.socket:
        """To an address that was judged. TLS, where it is implicit, knows the server by its name nevertheless."""
        settings = self._settings
        failure: OSError = OSError(f"{settings.host} has no address")
        for address in self._guard.resolve(settings.host, settings.port)[:4]:
            try:
                plain = socket.create_connection(address, timeout=settings.timeout_s)
            except OSError as error:
                failure = error
                continue
            self._lever = plain.dup()
            if self._is_over:
                self.shut_down()
            if settings.tls != "implicit":
                return plain
            try:
                return self._tls.wrap_socket(plain, server_hostname=settings.host)
            except OSError:
                plain.close()
                raise
        raise failure


class _Client(smtplib.SMTP):
    """smtplib over a connection that is there already. It greets by a fixed name: a look-up of ours could block."""

    def __init__(self, connection: socket.socket, settings: SmtpSettings) -> None:
        self._connection = connection
        try:
            super().__init__(
                settings.host, settings.port, local_hostname="tidemark.invalid", timeout=settings.timeout_s
            )
        except BaseException:
            connection.close()
            raise

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._connection


def mail(notice: Notice, settings: SmtpSettings) -> EmailMessage:
    """The same bytes for the same notice."""
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = settings.sender
    message["To"] = ", ".join(settings.to)
    message["Subject"] = legible(title(notice))
    message["Date"] = datetime.fromtimestamp(notice.at_ms // 1000, UTC)
    message["Message-ID"] = message_id(notice, settings)
    message["References"] = f"<{sha256(notice.dedup_key.encode()).hexdigest()[:32]}@{_domain(settings)}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Tidemark-Dedup-Key"] = legible(notice.dedup_key)
    message.set_content(text(notice), charset="utf-8", cte="quoted-printable")
    return message


def message_id(notice: Notice, settings: SmtpSettings) -> str:
    return f"<{notice.notice_id}@{_domain(settings)}>"


def _domain(settings: SmtpSettings) -> str:
    return settings.sender.rpartition("@")[2]


def _judged(name: str, error: smtplib.SMTPException | OSError) -> ChannelUnavailable | ChannelRefused:
    """By the server's code: 4xx passes, 5xx stays. What it said is not quoted: it may hold addresses."""
    codes = _codes(error)
    said = f"channel {name}: the mail server answers {', '.join(map(str, codes))}" if codes else ""
    if not codes:
        return _not_reached(name, error)
    if any(code < 500 for code in codes):
        return ChannelUnavailable(said)
    if isinstance(error, smtplib.SMTPDataError):
        return ChannelRefused(f"{said} to this mail", permanent=False)
    return ChannelRefused(f"{said}; check sender, recipients and password", permanent=True)


def _codes(error: BaseException) -> list[int]:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return sorted({code for code, _ in error.recipients.values()})
    return [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code > 0 else []


def _not_reached(name: str, error: BaseException) -> ChannelUnavailable | ChannelRefused:
    if isinstance(error, AddressRefused):
        return ChannelRefused(f"channel {name}: {error}", permanent=True)
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", "") or error.reason or type(error).__name__
        return ChannelUnavailable(f"channel {name}: no trusted TLS connection ({why}); check certificate and ca_file")
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return ChannelUnavailable(f"channel {name}: the server offers no STARTTLS or log-in; nothing was sent")
    return ChannelUnavailable(f"channel {name}: no answer of the mail server ({type(error).__name__})")
