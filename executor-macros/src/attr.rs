//! Parses the options of an attribute, `#[task(…)]` and `#[main(…)]`.

use proc_macro2::TokenStream;
use syn::{
    Error, Ident, LitStr, Path, Result, ext::IdentExt, meta::ParseNestedMeta, parse::Parser,
};

/// The options of `#[task(name = "…", handle = Ident, crate = "path", codec = "…")]`.
#[derive(Clone)]
pub(crate) struct TaskAttr {
    pub(crate) name: Option<LitStr>,
    pub(crate) handle: Option<Ident>,
    pub(crate) krate: Path,
    pub(crate) codec: Codec,
}

/// The options of `#[managed(name = "…", crate = "path", codec = "…")]`.
pub(crate) struct ManagedAttr {
    pub(crate) name: Option<Ident>,
    pub(crate) krate: Path,
    pub(crate) codec: Codec,
}

impl ManagedAttr {
    pub(crate) fn parse(tokens: TokenStream) -> Result<Self> {
        let (mut name, mut krate, mut codec) = (None, None, None);
        let parser = syn::meta::parser(|meta| {
            if meta.path.is_ident("name") {
                let what = "`name` takes the name of the proxy's type, in quotes: `name = \"SharedCounter\"`";
                let text = string(&meta, what)?;
                let ident = text.parse().map_err(|_| Error::new(text.span(), what))?;
                set(&mut name, &meta, ident)
            } else if meta.path.is_ident("crate") {
                set(&mut krate, &meta, crate_path(&meta)?)
            } else if meta.path.is_ident("codec") {
                set(&mut codec, &meta, codec_of(&meta)?)
            } else {
                Err(meta.error("unknown option: `#[managed]` takes `name`, `codec` and `crate`"))
            }
        });
        parser.parse2(tokens)?;
        Ok(ManagedAttr {
            name,
            krate: krate.unwrap_or_else(default_crate),
            codec: codec.unwrap_or(Codec::Postcard),
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Codec {
    Postcard,
    MessagePack,
}

impl TaskAttr {
    pub(crate) fn parse(tokens: TokenStream) -> Result<Self> {
        let (mut name, mut handle, mut krate, mut codec) = (None, None, None, None);
        let parser = syn::meta::parser(|meta| {
            if meta.path.is_ident("name") {
                set(&mut name, &meta, name_of(&meta)?)
            } else if meta.path.is_ident("handle") {
                let ident = meta.value()?.parse().map_err(|error| {
                    Error::new(
                        error.span(),
                        "`handle` takes the name of a type, without quotes: `handle = ResizeTask`",
                    )
                })?;
                set(&mut handle, &meta, ident)
            } else if meta.path.is_ident("crate") {
                set(&mut krate, &meta, crate_path(&meta)?)
            } else if meta.path.is_ident("codec") {
                set(&mut codec, &meta, codec_of(&meta)?)
            } else {
                Err(meta
                    .error("unknown option: `#[task]` takes `name`, `handle`, `codec` and `crate`"))
            }
        });
        parser.parse2(tokens)?;
        Ok(TaskAttr {
            name,
            handle,
            krate: krate.unwrap_or_else(default_crate),
            codec: codec.unwrap_or(Codec::Postcard),
        })
    }
}

/// Parses `#[main(crate = "path")]`, and returns the path of the `executor` crate.
pub(crate) fn parse_main(tokens: TokenStream) -> Result<Path> {
    let mut krate = None;
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("crate") {
            set(&mut krate, &meta, crate_path(&meta)?)
        } else {
            Err(meta.error(
                "unknown option: `#[executor::main]` takes only `crate`; put the runtime's options in its \
                 own attribute below",
            ))
        }
    });
    parser.parse2(tokens)?;
    Ok(krate.unwrap_or_else(default_crate))
}

fn default_crate() -> Path {
    syn::parse_quote!(::executor)
}

fn set<T>(slot: &mut Option<T>, meta: &ParseNestedMeta<'_>, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(meta.error("duplicate option")),
    }
}

fn string(meta: &ParseNestedMeta<'_>, what: &str) -> Result<LitStr> {
    meta.value()?.parse().map_err(|error| Error::new(error.span(), what))
}

fn name_of(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let name = string(meta, "`name` takes a string: `name = \"images/resize\"`")?;
    let text = name.value();
    if text.is_empty() || text.contains(|c: char| c.is_control()) {
        return Err(Error::new(
            name.span(),
            "a task's name must not be empty or contain control characters",
        ));
    }
    Ok(name)
}

fn crate_path(meta: &ParseNestedMeta<'_>) -> Result<Path> {
    let what = "`crate` takes the path of the `executor` crate, in quotes: `crate = \"::my_crate::executor\"`";
    let path = string(meta, what)?;
    path.parse_with(Path::parse_mod_style).map_err(|_| Error::new(path.span(), what))
}

fn codec_of(meta: &ParseNestedMeta<'_>) -> Result<Codec> {
    let what = "`codec` must be \"postcard\" (the default) or \"messagepack\" (for types that postcard \
                cannot encode)";
    let codec = string(meta, what)?;
    match codec.value().as_str() {
        "postcard" => Ok(Codec::Postcard),
        "messagepack" => Ok(Codec::MessagePack),
        _ => Err(Error::new(codec.span(), what)),
    }
}

/// Whether `name` is the name of a primitive type. A generated type with this name would hide the
/// primitive type in the whole module.
pub(crate) fn is_primitive(name: &Ident) -> bool {
    const PRIMITIVES: [&str; 17] = [
        "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32",
        "i64", "i128", "isize", "f32", "f64",
    ];
    PRIMITIVES.iter().any(|primitive| name.unraw() == primitive)
}
