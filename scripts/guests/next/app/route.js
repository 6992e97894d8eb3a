export const dynamic = 'force-dynamic'
export const GET = () => Response.json({ generation: process.env.USR2_GENERATION })
