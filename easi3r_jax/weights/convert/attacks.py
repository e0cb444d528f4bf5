"""Names that a file asks for in order to run something on its reader.

Nothing that a file names is ever imported or called: the list only decides whether a file is refused with a warning.
It names what runs commands or code, reaches into the interpreter, or touches files and the network. What only describes
something (`subprocess.CompletedProcess`, `signal.SIGTERM`, `inspect.Signature`) is an ordinary option of a trainer, and
packages of users may have the names of standard modules (`code`, `trace`, `profile`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

#: Modules nearly all of whose members run something. Users' packages cannot have these names.
_MODULES = frozenset(
    (
        *("os", "posix", "nt", "sys", "gc", "subprocess", "_posixsubprocess", "shutil", "pty", "runpy", "importlib"),
        *("marshal", "webbrowser", "ensurepip", "zipimport", "cgitb", "idlelib", "popen2"),
    )
)
#: Members of these that run nothing.
_INERT = frozenset(
    (
        *(f"{module}.{name}_result" for module in ("os", "posix", "nt") for name in ("stat", "statvfs", "times")),
        *(f"{module}.uname_result" for module in ("os", "posix")),
        *("os.terminal_size", "os.sched_param", "posix.sched_param", "os.PathLike", "os._Environ"),
        *(f"subprocess.{name}" for name in ("CompletedProcess", "CalledProcessError", "TimeoutExpired")),
        *(f"shutil.{name}" for name in ("Error", "SameFileError", "ExecError", "ReadError")),
        *("importlib.metadata", "importlib.resources"),
    )
)


def _of(modules: str, names: str) -> Iterator[str]:
    """Every name in every module."""
    return (f"{module}.{name}" for module, name in itertools.product(modules.split(), names.split()))


_FILES = (
    "touch unlink rmdir mkdir rename replace chmod lchmod symlink_to hardlink_to link_to open read_text read_bytes "
    "write_text write_bytes"
)
#: Single functions and classes, and what they contain.
_MEMBERS = frozenset(
    (
        *_of("builtins __builtin__", "eval exec execfile compile open file __import__ input raw_input breakpoint"),
        *_of("builtins __builtin__", "globals locals vars setattr delattr apply reload help"),
        *_of("io _io codecs bz2 gzip lzma tarfile shelve dbm", "open FileIO open_code"),
        *_of("types", "FunctionType LambdaType CodeType"),
        *_of("pickle _pickle cPickle pickle5 dill dill._dill cloudpickle joblib", "load loads _load _loads"),
        *_of("pickle _pickle cPickle pickle5 dill dill._dill cloudpickle", "Unpickler _Unpickler"),
        *_of("dill._dill", "_create_code _create_function _eval_repr _import_module"),
        *_of("cloudpickle.cloudpickle", "_make_function _builtin_type subimport"),
        *_of("numpy numpy.lib.npyio numpy.lib._npyio_impl", "load"),
        *_of("numpy.testing._private.utils", "runstring"),
        *_of("numpy", "f2py"),
        *_of("numpy.distutils.exec_command", "exec_command"),
        *_of("pandas pandas.io.pickle", "read_pickle"),
        *_of("torch torch.serialization torch.jit torch.jit._serialization torch.hub", "load _load _legacy_load"),
        *_of("torch.hub", "load_state_dict_from_url download_url_to_file _load_local"),
        *_of("torch.utils.cpp_extension", "load load_inline"),
        *_of("torch.utils.collect_env", "run run_and_read_all"),
        *_of("torch.jit.unsupported_tensor_ops", "execWrapper"),
        *_of("torch._inductor.codecache", "compile_file"),
        *_of("torch._dynamo.guards", "GuardBuilder"),
        *_of("code", "interact InteractiveInterpreter InteractiveConsole compile_command"),
        *_of("codeop", "compile_command CommandCompiler Compile"),
        *_of("pdb profile cProfile", "run runeval runctx runcall set_trace post_mortem Pdb"),
        *_of("profile.Profile cProfile.Profile bdb.Bdb trace.Trace", "run runeval runctx runcall runfunc"),
        *_of("timeit", "timeit repeat main Timer"),
        *_of("doctest", "debug debug_script debug_src testfile"),
        *_of("pydoc", "pipepager tempfilepager"),
        *_of("uuid", "_popen _get_command_stdout"),
        *_of("platform", "popen _syscmd_ver _syscmd_file"),
        *_of("imp", "load_source load_module load_compiled load_dynamic find_module"),
        *_of("commands", "getoutput getstatusoutput getstatus"),
        *_of("distutils", "spawn file_util dir_util"),
        *_of("lib2to3.pgen2", "grammar.Grammar.loads pgen.ParserGenerator.make_label"),
        *_of("pip", "main _internal"),
        *_of("site", "main addsitedir addpackage execsitecustomize execusercustomize"),
        *_of("atexit", "register"),
        *_of("inspect", "currentframe stack trace"),
        *_of("signal _signal", "signal raise_signal alarm setitimer pthread_kill"),
        *_of("threading", "Thread Timer"),
        *_of("_thread thread", "start_new_thread start_new"),
        *_of("multiprocessing multiprocessing.context multiprocessing.process", "Process Pool BaseProcess"),
        *_of("multiprocessing.util", "spawnv_passfds"),
        *_of("asyncio", "run create_subprocess_exec create_subprocess_shell subprocess"),
        *_of("asyncio.unix_events", "_UnixSubprocessTransport"),
        *_of("ctypes", "CDLL PyDLL WinDLL OleDLL cdll pydll windll oledll LibraryLoader CFUNCTYPE PYFUNCTYPE util"),
        *_of("ctypes", "memmove memset string_at wstring_at cast"),
        *_of("_ctypes", "dlopen call_function"),
        *_of("socket _socket", "socket create_connection create_server socketpair fromfd"),
        *_of("urllib", "request urlopen urlretrieve"),
        *_of("urllib2", "urlopen"),
        *_of("http", "server client.HTTPConnection client.HTTPSConnection"),
        *_of("ftplib smtplib telnetlib imaplib", "FTP FTP_TLS SMTP SMTP_SSL Telnet IMAP4 IMAP4_stream"),
        *_of("requests httpx", "get post put patch delete head request api stream"),
        *_of("tempfile", "mkstemp mkdtemp mktemp NamedTemporaryFile TemporaryFile TemporaryDirectory"),
        *_of("sqlite3", "connect"),
        *_of("pathlib.Path pathlib.PosixPath pathlib.WindowsPath", _FILES),
    )
)
#: Attributes that lead from any object to the interpreter's insides.
_INSIDES = frozenset(
    (
        *("__globals__", "__builtins__", "__subclasses__", "__base__", "__bases__", "__mro__", "__code__"),
        *("__closure__", "__import__", "__loader__", "__self__", "__getattribute__"),
    )
)
#: What makes a function of its arguments. An ordinary option; only an attack has the result called, too.
_MAKE_FUNCTIONS = frozenset((*_of("operator _operator", "attrgetter itemgetter methodcaller"), "functools.partial"))
_MAX_PARTS = 4  # of the names above
_MAX_STARTS = 8  # a file may have many names of many parts
_FIRST = _MODULES | {member.partition(".")[0] for member in _MEMBERS}


def runs_something(module: str, name: str) -> bool:
    """Whether a name is one that only attacks need. The names must be short: see `pickled.MAX_NAME`."""
    inside = name.split(".")
    parts = [*module.split("."), *inside]
    if not _INSIDES.isdisjoint(inside):
        return True
    if _listed(parts):
        return True
    # A dotted name leads from the module to others that it imports: torch.serialization, os.system.
    return any(_listed(inside[start:]) for start in range(min(_MAX_STARTS, len(inside) - 1)))


def runs_when_called(name: str) -> bool:
    """Whether calling what this class makes is something that only attacks need."""
    return name in _MAKE_FUNCTIONS


def _listed(parts: list[str]) -> bool:
    if parts[0] not in _FIRST:
        return False
    starts = list(itertools.accumulate(parts[:_MAX_PARTS], "{}.{}".format))
    if parts[0] in _MODULES:
        return not any(start in _INERT for start in starts)
    return any(start in _MEMBERS for start in starts)
