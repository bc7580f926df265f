"""Pickles that would hurt whoever unpickles them, and the opcodes to write more.

A payload that gets its way makes the folder ``marker``, or takes memory or time without end.
"""

import pickle

# What calls a function, or leads to one: module, name, arguments. 'MARKER' is the folder to make.
CALLS = [
    ('os', 'mkdir', ('MARKER',)), ('posix', 'mkdir', ('MARKER',)), ('nt', 'mkdir', ('MARKER',)),
    ('os', 'makedirs', ('MARKER',)), ('os', 'system', ('mkdir MARKER',)),
    ('os', 'popen', ('mkdir MARKER',)), ('os', 'execvp', ('mkdir', ['mkdir', 'MARKER'])),
    ('posix', 'system', ('mkdir MARKER',)), ('os', 'path', ()),
    ('subprocess', 'run', (['mkdir', 'MARKER'],)), ('subprocess', 'call', (['mkdir', 'MARKER'],)),
    ('subprocess', 'Popen', (['mkdir', 'MARKER'],)),
    ('subprocess', 'check_output', (['mkdir', 'MARKER'],)),
    ('subprocess', 'getoutput', ('mkdir MARKER',)), ('pty', 'spawn', (['mkdir', 'MARKER'],)),
    ('builtins', 'eval', ("__import__('os').mkdir('MARKER')",)),
    ('builtins', 'exec', ("import os; os.mkdir('MARKER')",)),
    ('__builtin__', 'eval', ("__import__('os').mkdir('MARKER')",)),
    ('builtins', '__import__', ('os',)), ('builtins', 'open', ('MARKER', 'w')),
    ('builtins', 'compile', ('1', 'x', 'eval')), ('builtins', 'map', ()), ('builtins', 'vars', ()),
    ('builtins', 'bytearray', (10**12,)), ('builtins', 'range', (10**12,)),
    ('importlib', 'import_module', ('os',)), ('runpy', 'run_path', ('MARKER',)),
    ('runpy', '_run_code', ("import os; os.mkdir('MARKER')", {})),
    ('code', 'interact', ()), ('timeit', 'timeit', ("__import__('os').mkdir('MARKER')",)),
    ('cProfile', 'run', ("__import__('os').mkdir('MARKER')",)),
    ('pdb', 'run', ("__import__('os').mkdir('MARKER')",)),
    ('shutil', 'copytree', ('/etc/ssl', 'MARKER')), ('pathlib', 'Path', ('MARKER',)),
    ('pathlib', 'Path.mkdir', ('MARKER',)), ('tempfile', 'mkdtemp', ('x', 'y', '/tmp')),
    ('socket', 'create_connection', (('127.0.0.1', 9),)),
    ('urllib.request', 'urlretrieve', ('file:///etc/hostname', 'MARKER')),
    ('webbrowser', 'open', ('http://127.0.0.1/',)), ('ctypes', 'CDLL', ('libc.so.6',)),
    ('pickle', 'loads', (pickle.dumps(0),)), ('_pickle', 'loads', (pickle.dumps(0),)),
    ('marshal', 'loads', (b'N',)), ('types', 'FunctionType', ()), ('types', 'CodeType', ()),
    ('functools', 'partial', ()), ('functools', 'reduce', ()), ('operator', 'attrgetter', ('x',)),
    ('operator', 'methodcaller', ('mkdir', 'MARKER')), ('logging.config', 'dictConfig', ({},)),
    ('multiprocessing.util', 'spawnv_passfds', (b'/bin/mkdir', [b'mkdir', b'MARKER'], ())),
    ('yaml', 'unsafe_load', ("!!python/object/apply:os.mkdir ['MARKER']",)),
    ('numpy', 'load', ('MARKER',)), ('numpy', 'fromfile', ('/etc/hostname',)),
    ('numpy.core.records', 'fromfile', ('/etc/hostname',)),
    ('numpy._core.multiarray', 'fromstring', (b'1', 'i8')),
    ('torch', 'load', ('MARKER',)), ('torch.hub', 'load', ('a/b', 'c')),
    ('torch.storage', '_load_from_bytes', (b'x',)), ('torch.jit', 'load', ('MARKER',)),
    ('torch._utils', '_rebuild_wrapper_subclass', ()),
    ('mmengine.config', 'Config.fromstring', ('a=1', '.py')),
    ('mmengine.fileio', 'load', ('MARKER',)), ('_codecs', 'encode', ('x', 'zip_codec')),
    ('vision.common.core.errors', 'run_cli', ())]

PLAIN_DTYPE = (b'cnumpy\ndtype\nX\x02\x00\x00\x00i8\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNN'
               b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb')
# The state says that elements are Python objects in a list (flag 2) of a dtype of 8 bytes.
LIST_DTYPE = PLAIN_DTYPE.replace(b'K\x00tb', b'K\x02tb')


def array(shape: bytes, dtype: bytes, content: bytes, core: bytes = b'numpy._core') -> bytes:
    """Opcodes of an array as NumPy 2 (or 1: core=b'numpy.core') writes it."""
    return (b'c' + core + b'.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01'
            + shape + dtype + b'\x89' + content + b'tb')


# A thousand elements over a list of two: NumPy reads what lies behind it, and the process dies.
OVERRUN = b'\x80\x02' + array(b'M\xe8\x03\x85', LIST_DTYPE, b'](K\x01K\x02e') + b'.'


def calls(marker: str) -> dict[str, bytes]:
    """Name -> pickle, one for each of ``CALLS``."""
    def filled(value):
        if isinstance(value, str):
            return value.replace('MARKER', marker)
        if isinstance(value, bytes):
            return value.replace(b'MARKER', marker.encode())
        return type(value)(map(filled, value)) if isinstance(value, list | tuple) else value

    def opcodes(module: str, name: str, arguments: tuple) -> bytes:
        given = pickle.dumps(filled(arguments), protocol=2)[2:-1]  # without PROTO and STOP
        return b'\x80\x02c' + f'{module}\n{name}\n'.encode() + given + b'R.'

    return {f'{module}.{name}': opcodes(module, name, arguments)
            for module, name, arguments in CALLS}


def other_ways(marker: str) -> dict[str, bytes]:
    """Name -> pickle: other opcodes that call, attribute chains, and sizes out of proportion."""
    where = pickle.dumps((marker,), protocol=2)[2:-1]
    bytes_16 = b'U\x10' + bytes(16)
    nested = b'K\x00' + b'q\x00h\x00\x86' * 60  # a tuple of twice the last one: 2^60 when hashed
    return {
        'INST': b'(X' + len(marker).to_bytes(4, 'little') + marker.encode() + b'ios\nmkdir\n.',
        'OBJ': b'(cos\nmkdir\n' + where + b'o.',
        'NEWOBJ': b'\x80\x02cos\nmkdir\n' + where + b'\x81.',
        'NEWOBJ_EX': b'\x80\x04cos\nmkdir\n' + where + b'}\x92.',
        'STACK_GLOBAL': b'\x80\x04\x8c\x02os\x8c\x05mkdir\x93' + where + b'R.',
        'STACK_GLOBAL of a chain': b'\x80\x04\x8c\x02os\x8c\x08sys.path\x93.',
        'EXT1': b'\x82\x01.', 'EXT4': b'\x84\x01\x00\x00\x00.',
        'PERSID': b'Pstorage\n.', 'BINPERSID': b'\x80\x02X\x01\x00\x00\x00aQ.',
        'NEXT_BUFFER': b'\x80\x05\x97.',
        'getattr of a module':
            b'\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x01\x00\x00\x00a\x86R.',
        'what getattr gives, called':
            b'\x80\x02cbuiltins\ngetattr\nX\x01\x00\x00\x00aX\x05\x00\x00\x00upper\x86R)R.',
        'state of a list': b'\x80\x02]}b.', 'state of a name': b'\x80\x02cos\nmkdir\n}b.',
        'call of a list': b'\x80\x02])R.',
        'call of an array': b'\x80\x02cnumpy\nndarray\nK\x05\x85R.',
        'array of a list': OVERRUN,
        'array of a list, NumPy 1': OVERRUN.replace(b'numpy._core', b'numpy.core'),
        'array of objects': b'\x80\x02' + array(b'K\x02\x85', PLAIN_DTYPE.replace(b'i8', b'O8'),
                                                b'](K\x01K\x02e') + b'.',
        'array with parts': b'\x80\x02' + array(
            b'K\x02\x85', PLAIN_DTYPE.replace(b'<NNN', b'<N(X\x01\x00\x00\x00atN'), bytes_16)
        + b'.',
        'array longer than its bytes': b'\x80\x02' + array(b'K\x03\x85', PLAIN_DTYPE, bytes_16)
        + b'.',
        'array of 2^62': b'\x80\x02' + array(
            b'\x8a\x08' + (2**62).to_bytes(8, 'little') + b'\x85', PLAIN_DTYPE, bytes_16) + b'.',
        'array whose size overflows': b'\x80\x02' + array(
            (b'\x8a\x08' + (2**61).to_bytes(8, 'little')) * 2 + b'\x86', PLAIN_DTYPE, bytes_16)
        + b'.',
        'array of negative size': b'\x80\x02' + array(b'J\xff\xff\xff\xff\x85', PLAIN_DTYPE,
                                                      bytes_16) + b'.',
        'array whose shape is endless':
            b'\x80\x02' + array(nested + b'\x85', PLAIN_DTYPE, bytes_16) + b'.',
        'dtype whose flags are endless': b'\x80\x02' + array(
            b'K\x02\x85', PLAIN_DTYPE.replace(b'K\x00tb', nested + b'tb'), bytes_16) + b'.',
        'encoding that is endless': b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a' + nested
        + b'\x86R.',
        'log buffer whose values are endless':
            b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}('
            b'X\x0c\x00\x00\x00_log_history' + nested + b'X\x0e\x00\x00\x00_count_history'
            + nested + b'X\x0a\x00\x00\x00max_lengthK\x01ub.',
        'array without state': b'\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
                               b'K\x00\x85U\x01b\x87R.',
        'number longer than its bytes':
            b'\x80\x02cnumpy._core.multiarray\nscalar\n' + PLAIN_DTYPE + b'U\x02ab\x86R.',
        'memo of 2^31': b'\x80\x02K\x00r\xff\xff\xff\x7f.',
        'bytes of 2^62': b'\x80\x04\x8e' + (2**62).to_bytes(8, 'little') + b'a.',
        'bytearray of 2^40': b'\x80\x05\x96' + (2**40).to_bytes(8, 'little') + b'a.',
        'text of 2^31': b'\x80\x02X\xff\xff\xff\x7fa.',
        'number of 5,000 digits': b'I' + b'9' * 5000 + b'\n.',
        'number of 100,000 bits': b'\x80\x02\x8b' + (12500).to_bytes(4, 'little') + b'\x7f' * 12500
        + b'.',
        'key that is hashed for ever': b'\x80\x02}' + nested + b'K\x01s.',
        'tuple for ever': b'\x80\x02' + nested + b'.',
        'list in itself': b'\x80\x02]q\x00h\x00a.',
        'lists 100,000 deep': b'\x80\x02' + b']' * 100_001 + b'a' * 100_000 + b'.',
        'no end': b'\x80\x02]', 'empty stack': b'\x80\x02a.', 'mark missing': b'\x80\x02e.',
        'mark as a value': b'\x80\x02(.', 'memo of nothing': b'\x80\x02h\x07.'}
