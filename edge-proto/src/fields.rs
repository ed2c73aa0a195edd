//! Structs that can grow, as a list of numbered fields.
//!
//! One field is `tag: varint, length: varint, value`, where `tag = number * 2 + must_understand`.
//! Fields stand in ascending order, defaults are omitted, so an unchanged object keeps its bytes
//! under a newer encoder; a field that holds its default all the same is refused. A reader skips an
//! unknown field, or refuses the object by the field's number when it must be understood. A value is a
//! [`Wire`] type, a field list, or a list of field lists; each is read strictly and fills its length
//! exactly.
//!
//! A type becomes a field list by [`field_list!`] (struct) or [`field_choice!`] (enum with members): one
//! table with the number of each member, for both directions. Types nest without recursion, so
//! [`DEPTH_MAX`] bounds the depth.

use alloc::vec::Vec;

use crate::wire::{Wire, put_varint, take_count, take_slice};

/// Nested field lists from a payload down to the innermost field, which in a Pod is that of a variable's
/// value or of a volume's file.
pub const DEPTH_MAX: usize = 4;

/// Numbers of the fields from the payload down to one field, `10.6.2` for example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath([u16; DEPTH_MAX]);

impl FieldPath {
    /// The same path, prefixed with the number of the field that contains its first list.
    const fn within(self, number: u16) -> Self {
        let [a, b, c, _] = self.0;
        Self([number, a, b, c])
    }
}

impl<const N: usize> From<[u16; N]> for FieldPath {
    fn from(numbers: [u16; N]) -> Self {
        let mut path = Self::default();
        for (to, from) in path.0.iter_mut().zip(numbers) {
            *to = from;
        }
        path
    }
}

impl core::fmt::Display for FieldPath {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut dot = "";
        for number in self.0.iter().filter(|number| **number != 0) {
            write!(f, "{dot}{number}")?;
            dot = ".";
        }
        Ok(())
    }
}

/// Kind of error in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The list ends inside a field, or a tag or length is not a number. The path is that of the list.
    Truncated,
    /// The value does not decode as its type, has bytes left over, or is the default.
    Value,
    /// The field, or the variant that it names, must be understood and is not known to this build.
    Unknown,
    /// The field is out of order or repeated.
    Order,
    /// The field is required and missing.
    Missing,
    /// The list or string is over its cap.
    Limit,
}

/// Why an object's payload was not accepted: the first error in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Field with the error.
    pub path: FieldPath,
    /// Kind of the error.
    pub fault: Fault,
}

impl FieldError {
    /// Error in field `number` of the list that is being read.
    #[must_use]
    pub fn new(fault: Fault, number: u16) -> Self {
        let path = FieldPath::from([number]);
        Self { path, fault }
    }

    const fn within(self, number: u16) -> Self {
        let path = self.path.within(number);
        Self { path, ..self }
    }
}

impl core::fmt::Display for FieldError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.path != FieldPath::default() {
            write!(f, "field {}: ", self.path)?;
        }
        f.write_str(match self.fault {
            Fault::Truncated => "truncated",
            Fault::Value => "wrong value",
            Fault::Unknown => "not supported by this agent, upgrade it",
            Fault::Order => "out of order",
            Fault::Missing => "missing",
            Fault::Limit => "over its cap",
        })
    }
}

impl core::error::Error for FieldError {}

/// Whether an older reader may ignore the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Ignoring the field loses detail, but does not change the meaning of the object.
    Allowed,
    /// A reader that does not know the field must refuse the object.
    Refused,
}

/// A type whose bytes are a field list.
pub trait FieldList {
    /// Appends the fields that do not hold their default, in ascending order.
    fn write(&self, fields: &mut Writer);

    /// Reads one field into `self`, which holds the default before the first call.
    ///
    /// # Errors
    /// The fault of the field.
    fn read(&mut self, field: Field<'_>) -> Result<(), FieldError>;

    /// Checks conditions on the whole list after all fields are read: caps and required fields.
    ///
    /// # Errors
    /// The first field that violates a condition.
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// Encodes a field list.
#[must_use]
pub fn encode(list: &dyn FieldList) -> Vec<u8> {
    let mut fields = Writer::default();
    list.write(&mut fields);
    #[cfg(test)]
    tests::inject(&mut fields);
    fields.into_bytes()
}

/// Decodes a field list.
///
/// # Errors
/// The first field that is wrong, over a cap, unknown and must be understood, or missing.
pub fn decode<T: FieldList + Default>(bytes: &[u8]) -> Result<T, FieldError> {
    let mut list = T::default();
    read(bytes, &mut list)?;
    Ok(list)
}

/// One copy of the loop for all types: they differ only in what `list` refers to.
fn read(bytes: &[u8], list: &mut dyn FieldList) -> Result<(), FieldError> {
    for field in Reader::new(bytes) {
        list.read(field?)?;
    }
    list.check()
}

/// Encodes one field list.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends field `number` unless `value` is the default.
    pub fn put<T: Wire + Default + PartialEq>(&mut self, number: u16, skip: Skip, value: &T) {
        if *value != T::default() {
            self.put_bytes(number, skip, &value.to_wire());
        }
    }

    /// Appends a nested field list, unless all its fields hold their defaults.
    pub fn put_list(&mut self, number: u16, skip: Skip, list: &dyn FieldList) {
        let value = encode(list);
        if !value.is_empty() {
            self.put_bytes(number, skip, &value);
        }
    }

    /// Appends a list of field lists (for example the containers of a Pod), unless it is empty.
    pub fn put_lists<T: FieldList>(&mut self, number: u16, skip: Skip, lists: &[T]) {
        if !lists.is_empty() {
            let mut value = Vec::new();
            put_varint(lists.len() as u64, &mut value);
            for list in lists {
                encode(list).put(&mut value);
            }
            self.put_bytes(number, skip, &value);
        }
    }

    fn put_bytes(&mut self, number: u16, skip: Skip, value: &[u8]) {
        (number * 2 + u16::from(skip == Skip::Refused)).put(&mut self.bytes);
        put_varint(value.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(value);
    }

    /// Ends the list and returns its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// One field of a list, as read.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Number of the field, from 1.
    pub number: u16,
    skip: Skip,
    value: &'a [u8],
}

impl Field<'_> {
    /// The value, which must fill the field exactly.
    ///
    /// # Errors
    /// [`Fault::Value`].
    pub fn read<T: Wire>(&self) -> Result<T, FieldError> {
        T::from_wire(self.value).ok_or_else(|| self.error(Fault::Value))
    }

    /// Like [`Self::read`], but assigns to `value`.
    ///
    /// # Errors
    /// [`Fault::Value`].
    pub fn read_into<T: Wire>(&self, value: &mut T) -> Result<(), FieldError> {
        *value = self.read()?;
        Ok(())
    }

    /// A nested field list, into `list`, which is the default.
    ///
    /// # Errors
    /// Errors of its fields, with this field's number in front of their path.
    pub fn read_list(&self, list: &mut dyn FieldList) -> Result<(), FieldError> {
        read(self.value, list).map_err(|error| error.within(self.number))
    }

    /// A list of at most `count_max` field lists, into `lists`, which is empty.
    ///
    /// # Errors
    /// Errors of fields in the lists, [`Fault::Limit`], [`Fault::Value`].
    pub fn read_lists<T: FieldList + Default>(
        &self,
        count_max: usize,
        lists: &mut Vec<T>,
    ) -> Result<(), FieldError> {
        let mut rest = self.value;
        let count = take_count(&mut rest).ok_or_else(|| self.error(Fault::Value))?;
        if count > count_max {
            return Err(self.error(Fault::Limit));
        }
        for _ in 0..count {
            let bytes = take_count(&mut rest).and_then(|count| take_slice(count, &mut rest));
            let bytes = bytes.ok_or_else(|| self.error(Fault::Value))?;
            let list = decode(bytes).map_err(|error| error.within(self.number))?;
            lists.push(list);
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(self.error(Fault::Value))
        }
    }

    /// Handles a number that the reader does not know: ignores it if that is allowed.
    ///
    /// # Errors
    /// [`Fault::Unknown`] when the field must be understood.
    pub fn unknown(&self) -> Result<(), FieldError> {
        match self.skip {
            Skip::Allowed => Ok(()),
            Skip::Refused => Err(self.error(Fault::Unknown)),
        }
    }

    /// Error in this field.
    #[must_use]
    pub fn error(&self, fault: Fault) -> FieldError {
        FieldError::new(fault, self.number)
    }
}

/// Reads a field list; stops after the first error.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Number of the previous field.
    last: u16,
}

impl<'a> Reader<'a> {
    /// Starts at the first field of a whole list.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            last: 0,
        }
    }

    fn take(&mut self) -> Result<Field<'a>, FieldError> {
        let truncated = FieldError {
            path: FieldPath::default(),
            fault: Fault::Truncated,
        };
        let tag = u16::take(&mut self.rest).ok_or(truncated)?;
        let count = take_count(&mut self.rest).ok_or(truncated)?;
        let value = take_slice(count, &mut self.rest).ok_or(truncated)?;
        let number = tag / 2;
        if number <= self.last {
            return Err(FieldError::new(Fault::Order, number));
        }
        self.last = number;
        // Every type's default, and no other value, encodes as zeros only. Such a field must be omitted, so
        // that an object has exactly one encoding.
        if value.iter().all(|byte| *byte == 0) {
            return Err(FieldError::new(Fault::Value, number));
        }
        let skip = match tag % 2 {
            0 => Skip::Allowed,
            _ => Skip::Refused,
        };
        Ok(Field {
            number,
            skip,
            value,
        })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Field<'a>, FieldError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.take();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Implements a field list for a struct. Each member has its number, `must` or `may` (be understood), and
/// its name; `list` or `lists` marks one nested field list or several. For several, a cap of their count
/// follows unless the payload's cap is enough. A function behind `check` checks conditions on the whole.
macro_rules! field_list {
    ($($name:ident $(check $check:path)? { $($fields:tt)* })*) => {$(
        $crate::fields::field_list! { @impl $name $(check $check)? { $($fields)* } }

        impl $name {
            /// Encodes the object. The encoding is canonical, so that an unchanged object keeps its hash.
            #[must_use]
            pub fn encode(&self) -> alloc::vec::Vec<u8> {
                $crate::fields::encode(self)
            }

            /// Decodes the object.
            ///
            /// # Errors
            /// The first field that is wrong, over a cap, unknown and must be understood, or missing.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::fields::FieldError> {
                $crate::fields::decode(bytes)
            }
        }
    )*};
    (@impl $name:ident $(check $check:path)? {
        $($number:literal $skip:ident $member:tt $(: $kind:ident $($count_max:expr)?)?),* $(,)?
    }) => {
        impl $crate::fields::FieldList for $name {
            fn write(&self, fields: &mut $crate::fields::Writer) {
                $($crate::fields::field_list!(
                    @put fields $number $skip (&self.$member) $($kind)?
                );)*
            }

            fn read(
                &mut self,
                field: $crate::fields::Field<'_>,
            ) -> Result<(), $crate::fields::FieldError> {
                match field.number {
                    $($number => $crate::fields::field_list!(
                        @read field (&mut self.$member) $($kind $($count_max)?)?
                    ),)*
                    _ => field.unknown(),
                }
            }

            $(fn check(&self) -> Result<(), $crate::fields::FieldError> {
                $check(self)
            })?
        }
    };
    (@put $fields:ident $number:literal $skip:ident ($value:expr)) => {
        $fields.put($number, $crate::fields::field_list!(@$skip), $value)
    };
    (@put $fields:ident $number:literal $skip:ident ($value:expr) list) => {
        $fields.put_list($number, $crate::fields::field_list!(@$skip), $value)
    };
    (@put $fields:ident $number:literal $skip:ident ($value:expr) lists) => {
        $fields.put_lists($number, $crate::fields::field_list!(@$skip), $value)
    };
    (@must) => { $crate::fields::Skip::Refused };
    (@may) => { $crate::fields::Skip::Allowed };
    (@read $field:ident ($value:expr)) => { $field.read_into($value) };
    (@read $field:ident ($value:expr) list) => { $field.read_list($value) };
    (@read $field:ident ($value:expr) lists) => { $field.read_lists(usize::MAX, $value) };
    (@read $field:ident ($value:expr) lists $count_max:expr) => {
        $field.read_lists($count_max, $value)
    };
}
pub(crate) use field_list;

/// Implements a field list for an enum: field 1 is the number of the variant, u8, and the members of each
/// variant have numbers from 2. Variant 0 is the default. An unknown variant refuses the object, like
/// an unknown field that must be understood.
macro_rules! field_choice {
    ($(
        $name:ident {
            $($variant_number:literal $variant:ident {
                $($number:literal $skip:ident $member:tt $(: $kind:ident $($count_max:expr)?)?),* $(,)?
            })*
        }
    )*) => {$(
        impl $crate::fields::FieldList for $name {
            fn write(&self, fields: &mut $crate::fields::Writer) {
                let variant: u8 = match self {
                    $(Self::$variant { .. } => $variant_number,)*
                };
                fields.put(1, $crate::fields::Skip::Refused, &variant);
                $($(if let Self::$variant { $member: value, .. } = self {
                    $crate::fields::field_list!(@put fields $number $skip (value) $($kind)?);
                })*)*
            }

            fn read(
                &mut self,
                field: $crate::fields::Field<'_>,
            ) -> Result<(), $crate::fields::FieldError> {
                match (&mut *self, field.number) {
                    (_, 1) => {
                        *self = match field.read::<u8>()? {
                            $($variant_number => Self::$variant {
                                $($member: Default::default()),*
                            },)*
                            _ => return Err(field.error($crate::fields::Fault::Unknown)),
                        };
                        Ok(())
                    }
                    $($((Self::$variant { $member: value, .. }, $number) => {
                        $crate::fields::field_list!(@read field (value) $($kind $($count_max)?)?)
                    })*)*
                    _ => field.unknown(),
                }
            }
        }
    )*};
}
pub(crate) use field_choice;

#[cfg(test)]
pub(crate) mod tests {
    use core::cell::Cell;
    use std::thread_local;

    use super::*;

    /// Number of a field that no version has defined.
    pub(crate) const NEW_FIELD: u16 = 9_999;

    thread_local! {
        /// Number of lists still to be finished before the one that gets the new field.
        static INJECT: Cell<Option<(usize, Skip)>> = const { Cell::new(None) };
    }

    /// Called for each list that is written, inner ones first.
    pub(super) fn inject(fields: &mut Writer) {
        match INJECT.get() {
            Some((0, skip)) => {
                fields.put_bytes(NEW_FIELD, skip, b"from the future");
                INJECT.set(None);
            }
            Some((lists, skip)) => INJECT.set(Some((lists - 1, skip))),
            None => {}
        }
    }

    /// Encodes `list` as a later version would: with a new field at the end of the `place`th list that is
    /// finished. `None` if there are fewer lists.
    pub(crate) fn newer(list: &dyn FieldList, place: usize, skip: Skip) -> Option<Vec<u8>> {
        INJECT.set(Some((place, skip)));
        let bytes = encode(list);
        INJECT.take().is_none().then_some(bytes)
    }
}
