"""What the kernels need and numba does not have: vectors and plain memory.

Vectors of a fixed number of lanes are numba values, so that potentials stay in
registers while weight rows stream past: numba alone keeps arrays in memory. LLVM splits
a vector wider than the machine's registers over several of them.

Memory is that of XLA's call frames and buffers, and of what threads share: addresses
are `intp`, words 64 bits.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model


class Lanes(types.Type):
    """`count` lanes of a numba scalar type; of booleans: a mask."""

    def __init__(self, scalar, count):
        super().__init__(f"Lanes({scalar} x {count})")
        self.scalar, self.count = scalar, count


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        one = ir.IntType(1)
        if lanes.scalar != types.boolean:
            one = manager.lookup(lanes.scalar).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(one, lanes.count))


def _splat(context, builder, value, lanes):
    vector = context.get_value_type(lanes)
    one = builder.insert_element(
        ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    first = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), None)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), first)


def _pointer(context, builder, lanes, array, offset):
    vector = context.get_value_type(lanes)
    return builder.bitcast(builder.gep(array, [offset]), vector.as_pointer())


@intrinsic(prefer_literal=True)
def splat(typing, value, count):
    """All `count` lanes equal to the scalar value."""
    lanes = Lanes(value, count.literal_value)

    def build(context, builder, signature, args):
        return _splat(context, builder, args[0], lanes)

    return lanes(value, count), build


@intrinsic(prefer_literal=True)
def load(typing, array, offset, count):
    """Lanes array[offset : offset + count]."""
    lanes = Lanes(array.dtype, count.literal_value)

    def build(context, builder, signature, args):
        pointer = _pointer(context, builder, lanes, *args[:2])
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp, count), build


@intrinsic
def store(typing, array, offset, value):
    """array[offset : offset + count] = value."""

    def build(context, builder, signature, args):
        pointer = _pointer(context, builder, value, *args[:2])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)

    return types.void(array, types.intp, value), build


@intrinsic
def select(typing, mask, yes, no):
    """mask ? yes : no in each lane; a scalar `yes` stands for all lanes."""
    scalar = not isinstance(yes, Lanes)

    def build(context, builder, signature, args):
        mask_value, yes_value, no_value = args
        if scalar:
            yes_value = _splat(context, builder, yes_value, no)
        return builder.select(mask_value, yes_value, no_value)

    return no(mask, no.scalar if scalar else yes, no), build


@intrinsic
def multiply_add(typing, a, b, c):
    """a·b + c, fused where the machine can."""

    def build(context, builder, signature, args):
        vector = context.get_value_type(a)
        bits = 32 if a.scalar == types.float32 else 64
        function = builder.module.declare_intrinsic(
            f"llvm.fmuladd.v{a.count}f{bits}",
            fnty=ir.FunctionType(vector, [vector] * 3),
        )
        return builder.call(function, args)

    return a(a, a, a), build


@intrinsic
def some(typing, mask):
    """Whether any lane of the mask is set."""

    def build(context, builder, signature, args):
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.or.v{mask.count}i1",
            fnty=ir.FunctionType(ir.IntType(1), [args[0].type]),
        )
        return builder.call(function, args)

    return types.boolean(mask), build


@intrinsic
def bits(typing, mask):
    """The mask of up to 64 lanes as a uint64, the first as its lowest bit."""

    def build(context, builder, signature, args):
        narrow = builder.bitcast(args[0], ir.IntType(mask.count))
        return builder.zext(narrow, ir.IntType(64))

    return types.uint64(mask), build


@intrinsic
def trailing_zeros(typing, word):
    """Index of the lowest bit set of a uint64 that is not 0."""

    def build(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(word), build


def _operator(function, instruction, result=None):
    """Teaches numba `function` of two vectors, or of a vector and a scalar."""

    @infer_global(function)
    class Operation(AbstractTemplate):
        def generic(self, args, keywords):
            a, b = args
            if isinstance(a, Lanes):
                lanes = Lanes(types.boolean, a.count) if result == "mask" else a
                return lanes(a, b if isinstance(b, Lanes) else a.scalar)

    def build(context, builder, signature, args):
        left, right = args
        lanes, other = signature.args
        if not isinstance(other, Lanes):
            right = _splat(context, builder, right, lanes)
        return instruction(builder, left, right)

    for other in (Lanes, types.Any):
        lower_builtin(function, Lanes, other)(build)


def _compare(sign):
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_operator(operator.or_, lambda builder, a, b: builder.or_(a, b))
_operator(operator.and_, lambda builder, a, b: builder.and_(a, b))
_operator(operator.lt, _compare("<"), "mask")
_operator(operator.le, _compare("<="), "mask")
_operator(operator.ge, _compare(">="), "mask")
_operator(operator.gt, _compare(">"), "mask")
_operator(operator.eq, _compare("=="), "mask")


@intrinsic
def array_at(typing, address, kind):
    """An address as an array of the scalar type `kind`, without bounds."""
    array = types.CPointer(kind.dtype)

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(array))

    return array(types.intp, kind), build


@intrinsic
def slice_from(typing, array, offset):
    """The array from an offset on: array[offset:]."""

    def build(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return array(array, types.intp), build


@intrinsic
def peek(typing, address):
    """The word at an address."""

    def build(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.intp(types.intp), build


@intrinsic
def write(typing, address, *words):
    """Puts words at an address, one behind the other."""
    types_of_words = types.BaseTuple.from_types(words)

    def build(context, builder, signature, args):
        where = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        values = cgutils.unpack_tuple(builder, args[1])
        for k, (value, kind) in enumerate(zip(values, words, strict=True)):
            word = context.cast(builder, value, kind, types.intp)
            place = builder.gep(where, [ir.Constant(ir.IntType(64), k)])
            builder.store(word, place)

    return types.void(types.intp, types_of_words), build


@intrinsic
def fetch_add(typing, address, value):
    """Adds to a word, atomically; what it was before."""

    def build(context, builder, signature, args):
        where = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", where, args[1], "seq_cst")

    return types.intp(types.intp, types.intp), build


@intrinsic
def call(typing, function, argument):
    """Calls the C function at an address with one word; the word it returns."""

    def build(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), [args[1]])

    return types.intp(types.intp, types.intp), build


@intrinsic(prefer_literal=True)
def address_of(typing, name):
    """Address of a C function that LLVM knows by a literal name."""

    def build(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word])
        function = builder.module.globals.get(name.literal_value)
        if function is None:
            function = ir.Function(builder.module, kind, name.literal_value)
        return builder.ptrtoint(function, word)

    return types.intp(name), build


@intrinsic(prefer_literal=True)
def text(typing, message):
    """Address of a literal as a C string."""

    def build(context, builder, signature, args):
        constant = context.insert_const_string(builder.module, message.literal_value)
        return builder.ptrtoint(constant, ir.IntType(64))

    return types.intp(message), build
