//! Rows as Parquet: numbers are `DECIMAL(38, 9)`, never floats; instants are microseconds in UTC; everything else is UTF-8.
//!
//! Rows are kept until a row group is full and then written column by column, so what is held is one group whatever the size of the
//! export. The footer, which names every group, comes last.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::columns::{COLUMNS, Cell, Kind, Row};

/// Rows of one group, about ten megabytes.
const GROUP_ROWS: usize = 8_192;
/// Present, and at the only level there is.
const PRESENT: i16 = 1;

/// Writes a file, row by row.
pub struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Vec<Row>,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file.
    pub fn new(out: W) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(&schema())?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_created_by("tollway".to_owned())
            .build();
        Ok(Self {
            file: SerializedFileWriter::new(out, schema, Arc::new(properties))?,
            rows: Vec::with_capacity(GROUP_ROWS),
        })
    }

    /// Takes a row.
    pub fn push(&mut self, row: Row) -> Result<(), ParquetError> {
        self.rows.push(row);
        if self.rows.len() < GROUP_ROWS {
            return Ok(());
        }
        self.flush()
    }

    /// Writes what is left, and the footer.
    pub fn finish(mut self) -> Result<(), ParquetError> {
        self.flush()?;
        self.file.close()?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let cells: Vec<_> = self.rows.iter().map(Row::cells).collect();
        let mut group = self.file.next_row_group()?;
        let mut place = 0;
        while let Some(mut column) = group.next_column()? {
            let values = cells.iter().map(|row| row[place]);
            let levels: Vec<i16> = values
                .clone()
                .map(|cell| if cell == Cell::Null { 0 } else { PRESENT })
                .collect();
            match COLUMNS[place].kind {
                Kind::Text => {
                    let texts: Vec<ByteArray> = values.filter_map(text).collect();
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&texts, Some(&levels), None)?
                }
                Kind::Decimal => {
                    let numbers: Vec<FixedLenByteArray> = values.filter_map(decimal).collect();
                    column
                        .typed::<FixedLenByteArrayType>()
                        .write_batch(&numbers, Some(&levels), None)?
                }
                Kind::Instant => {
                    let instants: Vec<i64> = values.filter_map(micros).collect();
                    column
                        .typed::<Int64Type>()
                        .write_batch(&instants, Some(&levels), None)?
                }
            };
            column.close()?;
            place += 1;
        }
        group.close()?;
        self.rows.clear();
        Ok(())
    }
}

fn schema() -> String {
    let fields: String = COLUMNS
        .iter()
        .map(|column| {
            let kind = match column.kind {
                Kind::Text => ("binary", "(UTF8)"),
                Kind::Decimal => ("fixed_len_byte_array(16)", "(DECIMAL(38,9))"),
                Kind::Instant => ("int64", "(TIMESTAMP(MICROS,true))"),
            };
            format!("optional {} {} {}; ", kind.0, column.name, kind.1)
        })
        .collect();
    format!("message cost_and_usage {{ {fields}}}")
}

fn text(cell: Cell<'_>) -> Option<ByteArray> {
    match cell {
        Cell::Text(text) => Some(ByteArray::from(text.as_bytes().to_vec())),
        _ => None,
    }
}

fn decimal(cell: Cell<'_>) -> Option<FixedLenByteArray> {
    match cell {
        Cell::Decimal(number) => Some(FixedLenByteArray::from(number.0.to_be_bytes().to_vec())),
        _ => None,
    }
}

fn micros(cell: Cell<'_>) -> Option<i64> {
    match cell {
        Cell::Instant(at) => Some(at.0.saturating_mul(1_000)),
        _ => None,
    }
}
