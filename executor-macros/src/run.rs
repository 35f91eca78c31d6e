//! What `#[task] impl Run for …` makes: a task function that runs the value, and the way from the value to its process.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, ImplItem, ItemImpl, Path, Result, ReturnType, Type, spanned::Spanned};

use crate::attr::TaskAttr;

/// `None` if it is something else.
pub(crate) fn parse(item: &TokenStream) -> Option<ItemImpl> {
    let item = syn::parse2::<ItemImpl>(item.clone()).ok()?;
    let (path, _) = item.trait_.as_ref()?;
    path.segments.last().filter(|last| last.ident == "Run")?;
    Some(item)
}

pub(crate) fn expand(attr: TokenStream, item: &ItemImpl) -> Result<TokenStream> {
    let attr = TaskAttr::parse(attr)?;
    let krate = &attr.krate;
    let own = &item.self_ty;
    let Type::Path(path) = &**own else {
        return Err(Error::new(own.span(), "`Run` is for a type of your own, named by its path"));
    };
    if !item.generics.params.is_empty() {
        return Err(Error::new(
            item.generics.span(),
            "a process's type has no parameters: it is found by name",
        ));
    }
    if let Some(handle) = &attr.handle {
        return Err(Error::new(
            handle.span(),
            "`handle` names the type of a function's task; here the type is there",
        ));
    }
    let [ImplItem::Fn(run)] = &item.items[..] else {
        return Err(Error::new(item.span(), "write `fn run(self)`, and nothing else"));
    };
    let signature = &run.sig;
    let takes_self = matches!(signature.inputs.first(), Some(syn::FnArg::Receiver(receiver)) if matches!(receiver.kind, syn::ReceiverKind::Value));
    if signature.ident != "run" || signature.inputs.len() != 1 || !takes_self {
        return Err(Error::new(signature.span(), "write `fn run(self)`: the value moves to the process"));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new(asyncness.span(), "`run` is no `async fn`; a task function may be one"));
    }
    let output: Type = match &signature.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, output) => (**output).clone(),
    };
    let user_path = item.trait_.as_ref().map(|(path, _)| path);
    let name = snake(&path.path);
    let function = format_ident!("run_{}", name);
    let (attrs, attr_name) = (&item.attrs, attr.name.iter());
    let krate_text = quote!(#krate).to_string().replace(' ', "");
    let codec = match attr.codec {
        crate::attr::Codec::Postcard => quote!(),
        crate::attr::Codec::MessagePack => quote!(codec = "messagepack",),
    };
    Ok(quote! {
        const _: () = {
            #[#krate::task(#(name = #attr_name,)* #codec crate = #krate_text)]
            fn #function(value: #own) -> #output {
                #krate::Run::run(value)
            }

            #(#attrs)*
            impl #user_path for #own {
                type Output = #output;
                #run
            }

            impl #krate::IntoBody for #own {
                type Output = <#function as #krate::TaskFn>::Output;

                fn into_process(self) -> #krate::Process<Self::Output> {
                    #krate::IntoBody::into_process(#function::task(self))
                }
            }
        };
    })
}

/// `MyProcess` as a part of a function's name.
fn snake(path: &Path) -> String {
    let name = path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default();
    let mut out = String::new();
    for (at, char) in name.chars().enumerate() {
        if char.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(char.to_lowercase());
    }
    out
}
