//! Structs that can grow, as a list of numbered fields.
//!
//! One field is `tag: varint, length: varint, value: postcard bytes`, where
//! `tag = number * 2 + must_understand`. Fields stand in ascending order, defaults are omitted, so
//! an unchanged object keeps its bytes under a newer encoder. A reader skips an unknown field, or
//! refuses the object by the field's number when it must be understood.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why an object's payload was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldError {
    /// The bytes end inside a field, or a tag or length is not a number.
    Truncated,
    /// This field's value does not decode as its type, or has bytes left over.
    Value(u32),
    /// A field that must be understood and is not known to this build.
    Unknown(u32),
    /// Fields out of order or doubled.
    Order(u32),
    /// A required field is missing.
    Missing(u32),
    /// A list or string of this field is over its cap.
    Limit(u32),
}

impl core::fmt::Display for FieldError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated"),
            Self::Value(number) => write!(f, "field {number}: wrong value"),
            Self::Unknown(number) => {
                write!(f, "field {number}: not supported by this agent, upgrade it")
            }
            Self::Order(number) => write!(f, "field {number}: out of order"),
            Self::Missing(number) => write!(f, "field {number}: missing"),
            Self::Limit(number) => write!(f, "field {number}: over its cap"),
        }
    }
}

impl core::error::Error for FieldError {}

/// Whether an older reader may skip the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Skipping loses detail, never meaning.
    Allowed,
    /// A reader that does not know the field must refuse the object.
    Refused,
}

/// Builds a field list.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends field `number` unless `value` is the default.
    pub fn put<T: Serialize + Default + PartialEq>(&mut self, number: u32, skip: Skip, value: &T) {
        if *value != T::default() {
            // Encoding our own types into a Vec fails only on a type that postcard cannot hold.
            self.put_bytes(
                number,
                skip,
                &postcard::to_allocvec(value).unwrap_or_default(),
            );
        }
    }

    /// Appends a nested list of field lists (for example the containers of a Pod).
    pub fn put_all<T>(
        &mut self,
        number: u32,
        skip: Skip,
        items: &[T],
        write: impl Fn(&T) -> Vec<u8>,
    ) {
        if !items.is_empty() {
            let mut value = Vec::new();
            varint(&mut value, items.len());
            for item in items {
                let item = write(item);
                varint(&mut value, item.len());
                value.extend_from_slice(&item);
            }
            self.put_bytes(number, skip, &value);
        }
    }

    fn put_bytes(&mut self, number: u32, skip: Skip, value: &[u8]) {
        let tag = number as usize * 2 + usize::from(skip == Skip::Refused);
        varint(&mut self.bytes, tag);
        varint(&mut self.bytes, value.len());
        self.bytes.extend_from_slice(value);
    }

    /// The finished list.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn varint(bytes: &mut Vec<u8>, value: usize) {
    // Into a Vec this cannot fail; every value here is a count or a length below 2^32.
    bytes.extend(postcard::to_allocvec(&(value as u64)).unwrap_or_default());
}

/// One field of a list.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Number of the field.
    pub number: u32,
    skip: Skip,
    value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The value, which must fill the field exactly.
    ///
    /// # Errors
    /// [`FieldError::Value`] with the field's number.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        match postcard::take_from_bytes(self.value) {
            Ok((value, [])) => Ok(value),
            _ => Err(FieldError::Value(self.number)),
        }
    }

    /// A nested list of at most `count_max` field lists.
    ///
    /// # Errors
    /// Those of `read` for any item, [`FieldError::Limit`], [`FieldError::Value`].
    pub fn read_all<T>(
        &self,
        count_max: usize,
        read: impl Fn(&'a [u8]) -> Result<T, FieldError>,
    ) -> Result<Vec<T>, FieldError> {
        let wrong = FieldError::Value(self.number);
        let (count, mut rest) = take_varint(self.value).ok_or(wrong)?;
        if count > count_max {
            return Err(FieldError::Limit(self.number));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let (length, after) = take_varint(rest).ok_or(wrong)?;
            let (item, after) = after.split_at_checked(length).ok_or(wrong)?;
            items.push(read(item)?);
            rest = after;
        }
        if rest.is_empty() {
            Ok(items)
        } else {
            Err(wrong)
        }
    }

    /// What a reader does with a number that it does not know.
    ///
    /// # Errors
    /// [`FieldError::Unknown`] when the field must be understood.
    pub const fn unknown(&self) -> Result<(), FieldError> {
        match self.skip {
            Skip::Allowed => Ok(()),
            Skip::Refused => Err(FieldError::Unknown(self.number)),
        }
    }
}

fn take_varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (value, rest) = postcard::take_from_bytes::<u32>(bytes).ok()?;
    Some((value as usize, rest))
}

/// Reads a field list; stops after the first error.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    last: Option<u32>,
}

impl<'a> Reader<'a> {
    /// A reader over one whole payload.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            last: None,
        }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Field<'a>, FieldError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = take_field(self.rest, self.last);
        match &field {
            Ok((field, rest)) => {
                self.rest = rest;
                self.last = Some(field.number);
            }
            Err(_) => self.rest = &[],
        }
        Some(field.map(|(field, _)| field))
    }
}

fn take_field(bytes: &[u8], last: Option<u32>) -> Result<(Field<'_>, &[u8]), FieldError> {
    let (tag, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| FieldError::Truncated)?;
    let (length, rest) = take_varint(rest).ok_or(FieldError::Truncated)?;
    let (value, rest) = rest.split_at_checked(length).ok_or(FieldError::Truncated)?;
    let number = tag / 2;
    if last.is_some_and(|last| last >= number) {
        return Err(FieldError::Order(number));
    }
    let skip = if tag % 2 == 1 {
        Skip::Refused
    } else {
        Skip::Allowed
    };
    Ok((
        Field {
            number,
            skip,
            value,
        },
        rest,
    ))
}
