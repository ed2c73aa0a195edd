//! Strict reader and writer of the wire's basic types, `docs/wire.md` section 1.
//!
//! The bytes are those of postcard. The reader is not postcard's, because that one accepts a varint
//! with more bytes than it needs: here every value has exactly one encoding, and any other
//! does not decode. A type that crosses the link implements [`Wire`], by `wire_struct!`,
//! `numbers!` or `variants!`, so that each number and each order of members is written
//! once, for both directions.
//!
//! Never allocates more than a small multiple of the bytes that it reads: lengths are checked against them.

use alloc::string::String;
use alloc::vec::Vec;

/// A value with one encoding.
pub trait Wire: Sized {
    /// Appends the bytes of `self`.
    fn put(&self, bytes: &mut Vec<u8>);

    /// Decodes one value from the front of `rest`. After `None` the content of `rest` has no meaning.
    fn take(rest: &mut &[u8]) -> Option<Self>;

    /// Appends the items of a list, without their count.
    fn put_items(items: &[Self], bytes: &mut Vec<u8>) {
        for item in items {
            item.put(bytes);
        }
    }

    /// Decodes `count` items; an item has at least one byte.
    fn take_items(count: usize, rest: &mut &[u8]) -> Option<Vec<Self>> {
        if count > rest.len() {
            return None;
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(Self::take(rest)?);
        }
        Some(items)
    }

    /// Encodes `self` alone.
    fn to_wire(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        bytes
    }

    /// Decodes one value that fills `bytes` exactly.
    #[must_use]
    fn from_wire(mut bytes: &[u8]) -> Option<Self> {
        let value = Self::take(&mut bytes)?;
        bytes.is_empty().then_some(value)
    }
}

/// Appends a varint: 7 bits a byte, low bits first.
pub(crate) fn put_varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value > 0x7f {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// Takes a varint of at most `max`, in its shortest encoding.
pub(crate) fn take_varint(max: u64, rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = u8::take(rest)?;
        let bits = u64::from(byte & 0x7f);
        // Bits past the 64th, or a last byte that adds nothing.
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return (value <= max).then_some(value);
        }
    }
    None
}

/// Takes a count of bytes or items.
pub(crate) fn take_count(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(take_varint(u64::from(u32::MAX), rest)?).ok()
}

/// Takes the next `count` bytes.
pub(crate) fn take_slice<'a>(count: usize, rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

impl Wire for u8 {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(*self);
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let (first, after) = rest.split_first()?;
        *rest = after;
        Some(*first)
    }

    fn put_items(items: &[Self], bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(items);
    }

    fn take_items(count: usize, rest: &mut &[u8]) -> Option<Vec<Self>> {
        take_slice(count, rest).map(Vec::from)
    }
}

impl Wire for bool {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        match u8::take(rest)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn put(&self, bytes: &mut Vec<u8>) {
                put_varint(u64::from(*self), bytes);
            }

            fn take(rest: &mut &[u8]) -> Option<Self> {
                take_varint(u64::from(Self::MAX), rest)?.try_into().ok()
            }
        }
    )*};
}
number!(u16, u32, u64);

/// Zigzag: 0, -1, 1, -2... as 0, 1, 2, 3...
impl Wire for i32 {
    fn put(&self, bytes: &mut Vec<u8>) {
        ((self << 1) ^ (self >> 31)).cast_unsigned().put(bytes);
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let value = u32::take(rest)?;
        let sign = 0_i32.wrapping_sub((value & 1).cast_signed());
        Some((value >> 1).cast_signed() ^ sign)
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let (first, after) = rest.split_first_chunk()?;
        *rest = after;
        Some(*first)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, bytes: &mut Vec<u8>) {
        put_varint(self.len() as u64, bytes);
        T::put_items(self, bytes);
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        T::take_items(take_count(rest)?, rest)
    }
}

impl Wire for String {
    fn put(&self, bytes: &mut Vec<u8>) {
        put_varint(self.len() as u64, bytes);
        bytes.extend_from_slice(self.as_bytes());
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let count = take_count(rest)?;
        let text = core::str::from_utf8(take_slice(count, rest)?).ok()?;
        Some(Self::from(text))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.is_some().put(bytes);
        if let Some(value) = self {
            value.put(bytes);
        }
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        Some(match bool::take(rest)? {
            true => Some(T::take(rest)?),
            false => None,
        })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
        self.1.put(bytes);
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        Some((A::take(rest)?, B::take(rest)?))
    }
}

/// Implements [`Wire`] for structs: the named members in this order, all of them.
macro_rules! wire_struct {
    ($($name:ident { $($member:tt),* $(,)? })*) => {$(
        impl $crate::wire::Wire for $name {
            fn put(&self, bytes: &mut alloc::vec::Vec<u8>) {
                $($crate::wire::Wire::put(&self.$member, bytes);)*
            }

            fn take(rest: &mut &[u8]) -> Option<Self> {
                Some(Self { $($member: $crate::wire::Wire::take(rest)?),* })
            }
        }
    )*};
}
pub(crate) use wire_struct;

/// Defines an enum without members, with the wire number of each variant, at most 127, and
/// implements [`Wire`]: the number in one byte.
macro_rules! numbers {
    ($(#[$of_enum:meta])* pub enum $name:ident {
        $($(#[$of_variant:meta])* $number:literal = $variant:ident),* $(,)?
    }) => {
        $(#[$of_enum])*
        #[repr(u8)]
        pub enum $name {
            $($(#[$of_variant])* $variant = const {
                assert!($number < 0x80_u8);
                $number
            }),*
        }

        impl $name {
            /// The variant with this wire number.
            #[must_use]
            pub const fn of(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl $crate::wire::Wire for $name {
            fn put(&self, bytes: &mut alloc::vec::Vec<u8>) {
                bytes.push(*self as u8);
            }

            fn take(rest: &mut &[u8]) -> Option<Self> {
                Self::of(<u8 as $crate::wire::Wire>::take(rest)?)
            }
        }
    };
}
pub(crate) use numbers;

/// Defines an enum with members, and a second enum of its variants' numbers. Implements [`Wire`]: the
/// number in one byte, then the members in their order. A variant without a number, or with the number
/// of another, does not compile.
macro_rules! variants {
    ($(#[$of_enum:meta])* pub enum $name:ident
     $(#[$of_numbers:meta])* numbered by $numbers:ident {
        $(
            $(#[$of_variant:meta])*
            $number:literal = $variant:ident {
                $($(#[$of_member:meta])* $member:ident: $type:ty),* $(,)?
            }
        ),* $(,)?
    }) => {
        $(#[$of_enum])*
        pub enum $name {
            $($(#[$of_variant])* $variant { $($(#[$of_member])* $member: $type),* }),*
        }

        $crate::wire::numbers! {
            $(#[$of_numbers])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $numbers {
                $($(#[$of_variant])* $number = $variant),*
            }
        }

        impl $crate::wire::Wire for $name {
            fn put(&self, bytes: &mut alloc::vec::Vec<u8>) {
                match self {
                    $(Self::$variant { $($member),* } => {
                        bytes.push($number);
                        $($crate::wire::Wire::put($member, bytes);)*
                    })*
                }
            }

            fn take(rest: &mut &[u8]) -> Option<Self> {
                Some(match <$numbers as $crate::wire::Wire>::take(rest)? {
                    $($numbers::$variant => Self::$variant {
                        $($member: $crate::wire::Wire::take(rest)?),*
                    },)*
                })
            }
        }
    };
}
pub(crate) use variants;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;

    /// Goal: the bytes are postcard's. Method: both write the same values, at the edges of each length.
    #[test]
    fn bytes_are_those_of_postcard() {
        fn same<T: Wire + PartialEq + core::fmt::Debug + serde::Serialize>(value: &T) {
            let bytes = value.to_wire();
            assert_eq!(postcard::to_allocvec(value).unwrap(), bytes, "{value:?}");
            assert_eq!(T::from_wire(&bytes).as_ref(), Some(value));
            for end in 0..bytes.len() {
                assert_eq!(T::from_wire(&bytes[..end]), None, "{value:?}, {end} bytes");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(T::from_wire(&longer), None, "{value:?}, a byte left over");
        }
        for shift in 0..64 {
            for value in [1_u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                same(&value);
                same(&u32::try_from(value & 0xffff_ffff).unwrap());
                same(&u16::try_from(value & 0xffff).unwrap());
                let value = (value & 0xffff_ffff) as u32;
                same(&value.cast_signed());
            }
        }
        same(&vec![1_u8, 2, 3]);
        same(&vec![Some(String::from("käfer")), None]);
        same(&([7_u8; 16], (true, vec![300_u16; 200])));
    }

    #[test]
    fn a_second_encoding_of_a_number_is_refused() {
        for wrong in [
            &[0x80, 0][..],
            &[0x81, 0],
            &[0xff, 0x80, 0],
            &[0x80; 11],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ] {
            assert_eq!(u64::from_wire(wrong), None, "{wrong:?}");
            assert_eq!(Vec::<u8>::take(&mut &*wrong), None, "{wrong:?}");
        }
        // Over the largest value of the type.
        assert_eq!(u16::from_wire(&[0x80, 0x80, 4]), None);
        assert_eq!(u32::from_wire(&[0xff, 0xff, 0xff, 0xff, 0x10]), None);
        assert_eq!(
            u32::from_wire(&[0xff, 0xff, 0xff, 0xff, 0x0f]),
            Some(u32::MAX)
        );
        assert_eq!(bool::from_wire(&[2]), None);
        assert_eq!(Option::<u8>::from_wire(&[2, 0]), None);
        assert_eq!(String::from_wire(&[1, 0xff]), None);
    }

    /// Goal: a false length costs no memory. Method: lengths over the number of bytes that follow.
    #[test]
    fn hostile_lengths_allocate_nothing() {
        for count in [1, 127, 128, 65_536, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(count, &mut bytes);
            assert_eq!(Vec::<u8>::from_wire(&bytes), None);
            assert_eq!(Vec::<String>::from_wire(&bytes), None);
            assert_eq!(String::from_wire(&bytes), None);
        }
        assert_eq!(format!("{:?}", Vec::<u8>::from_wire(&[0])), "Some([])");
    }
}
